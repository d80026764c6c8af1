"""The settings of a training run."""

from dataclasses import dataclass

from cortex_fast import checks

MOST = 2**31 - 1  # epochs, and images a batch
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainingRecipe:
    """Adam with weight decay, a step schedule and cross-entropy. The defaults are the published code's.

    Args:
        epochs: passes over the images, from 0. Default 80.
        batch_size: images in a step, of all processes together, from 2. Default 512.
        lr: learning rate of the first epoch. Default 1e-3.
        weight_decay: coefficient of the L2 penalty, which Adam adds to the gradient. Default 1e-4.
        step_epochs: epochs after which the learning rate is multiplied by `gamma`. Default 20.
        gamma: the factor. Default 0.1.

    Raises:
        TypeError or ValueError: a setting has another type or is out of range; the message names it.
    """

    epochs: int = 80
    batch_size: int = 512
    lr: float = 1e-3
    weight_decay: float = 1e-4
    step_epochs: int = 20
    gamma: float = 0.1

    def __post_init__(self) -> None:
        settings = {
            "epochs": checks.whole("epochs", self.epochs, 0, MOST),
            "batch_size": checks.whole("batch_size", self.batch_size, 2, MOST),
            "step_epochs": checks.whole("step_epochs", self.step_epochs, 1),
            "lr": checks.positive("lr", self.lr),
            "gamma": checks.positive("gamma", self.gamma),
            "weight_decay": checks.non_negative("weight_decay", self.weight_decay),
        }
        for name, value in settings.items():  # Python's own numbers: checkpoints and headers hold them
            object.__setattr__(self, name, value)

    def lr_of(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: the epoch, from 0.

        Returns:
            lr * gamma^floor(epoch / step_epochs).
        """
        return self.lr * self.gamma ** (epoch // self.step_epochs)
