from .closure import Closure
