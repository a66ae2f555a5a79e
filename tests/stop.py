"""Events of a training run that ends it in the middle."""

from fpsgen.train.events import Silent


class Stop(Silent):
    """Ends the run, as a kill would, when so many steps are done (or prompts, or videos)."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, index: int, total: int, note: str) -> None:
        if index + 1 == self.after:
            raise KeyboardInterrupt
