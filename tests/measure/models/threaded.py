"""A runtime that starts a thread when it is imported, so that forking it would not be safe."""

import threading

from leanmark.runtimes import load_torch

threading.Thread(target=threading.Event().wait, daemon=True).start()
load = load_torch
