"""Functions that the tests of executors map; a module of its own, which a fresh process can import."""

import os
import threading
import time


def square_later(number):
    time.sleep(0.02 * number)
    return number**2


def where(_):
    return os.getpid(), threading.get_ident()


def only_even(number):
    if number % 2:
        raise ValueError("task 2: expected an even number")
    return number
