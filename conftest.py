"""What pytest passes over: the doctests of what needs a host that is not installed."""

from importlib.util import find_spec

HOSTS = {
    "botorch_support": "botorch",
    "sklearn_support": "sklearn",
    "plotting": "matplotlib",
    "kernels/triton_product.py": "triton",
    "kernels/triton_gradient.py": "triton",
}

collect_ignore = [f"torch_propkernel/{face}" for face, host in HOSTS.items() if find_spec(host) is None]
