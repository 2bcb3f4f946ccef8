"""The latent function of a Student's t process, at some points."""
