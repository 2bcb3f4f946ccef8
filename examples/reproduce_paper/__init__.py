"""The experiments of Pacelli et al. (2023), with sampled networks beside the theories; see ``__main__.py``."""
