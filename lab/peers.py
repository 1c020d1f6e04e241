"""Plain DANN by train.py and by three public libraries, each through its own DANN: the part peers of benchmark.py.

All train network `small` from the same weights with the values of recipe `tuned`. A library gets preprocessed images as
float32 and no label of the target, and draws the batches; BatchNorm has one set of statistics for both domains there.
"""

import importlib
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import TensorDataset

from config import Recipe, Settings
from dataset import as_input
from model import DANN, lambda_schedule
from train import Data
from utils import UserError, seed_step

STEPS = 600
MODULES = ("skada.deep", "skorch", "pytorch_adapt.hooks", "kale.pipeline.domain_adapter", "pytorch_lightning")
INSTALL = (  # no dependencies, as they ask for older versions of torch and pandas
    "pip install --no-deps skada skorch POT pytorch-adapt pytorch-metric-learning pykale pytorch-lightning "
    "lightning-utilities torchmetrics tensorly tabulate"
)


def require_packages() -> None:
    """Import the libraries; UserError for what is missing."""
    for module in MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"--parts peers needs the package {error.name or module}; run {INSTALL}.") from error


def rate(recipe: Recipe, step: int) -> float:
    """The one-cycle learning rate as a part of its peak."""
    return recipe.learning_rate(step / STEPS) / recipe.lr


def lambda_p(recipe: Recipe, step: int) -> float:
    return recipe.lambda_max * lambda_schedule(step / STEPS)


# What a user writes, the lines that are counted


def with_skada(net: DANN, recipe: Recipe, x_s: Tensor, y_s: Tensor, x_t: Tensor) -> None:
    from skada.deep import DANN as SkadaDANN
    from skada.deep.modules import DomainClassifier
    from skorch.callbacks import Callback, LRScheduler

    critic, steps = DomainClassifier(num_features=96), itertools.count()
    critic.classifier = net.domain_classifier  # its own ends in a softmax over one output, whose gradient is 0

    class Schedule(Callback):
        def on_batch_begin(self, *_: Any, **__: Any) -> None:
            critic.alpha = lambda_p(recipe, step := next(steps))
            if step == STEPS:
                raise KeyboardInterrupt  # ends fit within an epoch

    adamw = {"optimizer": AdamW, "optimizer__weight_decay": recipe.weight_decay, "optimizer__fused": True}
    estimator = SkadaDANN(
        nn.Sequential(net.feature_extractor, net.label_classifier),
        layer_name="0",
        domain_classifier=critic,
        domain_criterion=lambda d_hat, d: F.cross_entropy(d_hat, d.long()),
        reg=0.5,  # of the sum of a mean per domain
        batch_size=recipe.batch_size,
        max_epochs=STEPS,
        train_split=None,
        lr=recipe.lr,
        **adamw,
        callbacks=[Schedule(), LRScheduler(LambdaLR, lr_lambda=partial(rate, recipe), step_every="batch")],
        verbose=0,
    )
    y = torch.cat([y_s, torch.full((len(x_t),), -1)])  # -1: no label
    estimator.fit(torch.cat([x_s, x_t]), y, sample_domain=np.repeat([1, -2], [len(x_s), len(x_t)]))


def with_pytorch_adapt(net: DANN, recipe: Recipe, x_s: Tensor, y_s: Tensor, x_t: Tensor) -> None:
    from pytorch_adapt.datasets import CombinedSourceAndTargetDataset, DataloaderCreator, SourceDataset, TargetDataset
    from pytorch_adapt.hooks import DANNHook, DomainLossHook, GradientReversalHook
    from pytorch_adapt.weighters import SumWeighter

    both = CombinedSourceAndTargetDataset(SourceDataset(TensorDataset(x_s, y_s)), TargetDataset(x_t))
    loader = DataloaderCreator(batch_size=recipe.batch_size)(train=both)["train"]
    models = {"G": net.feature_extractor, "C": net.label_classifier, "D": net.domain_classifier}
    optimizer = AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    scheduler = LambdaLR(optimizer, partial(rate, recipe))
    reversal = GradientReversalHook(apply_to=["src_imgs_features", "target_imgs_features"])
    domain_loss = DomainLossHook(nn.CrossEntropyLoss(reduction="none"))
    weighter = SumWeighter(weights={"src_domain_loss": 0.5, "target_domain_loss": 0.5})
    hook = DANNHook([optimizer], weighter, gradient_reversal=reversal, domain_loss_hook=domain_loss)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, batch in enumerate(itertools.islice(batches, STEPS)):
        reversal.fn.update_weight(lambda_p(recipe, step))
        hook({**models, **batch})
        scheduler.step()


def with_pykale(net: DANN, recipe: Recipe, x_s: Tensor, y_s: Tensor, x_t: Tensor) -> None:
    from kale.loaddata.multi_domain import MultiDomainAccess, MultiDomainDataset
    from kale.pipeline.domain_adapter import DANNTrainer
    from pytorch_lightning import Trainer

    class Images(TensorDataset):
        data = property(lambda self: self.tensors[0])
        get_train = get_test = lambda self: self

    class OneCycle(DANNTrainer):
        def configure_optimizers(self) -> dict[str, Any]:
            (optimizer,) = super().configure_optimizers()
            scheduler = LambdaLR(optimizer, partial(rate, recipe))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    unknown = torch.zeros(len(x_t), dtype=torch.long)  # labels of the target, for the accuracy that it logs
    domains = {"source": Images(x_s, y_s), "target": Images(x_t, unknown)}
    adapter = OneCycle(
        MultiDomainDataset(MultiDomainAccess(domains, 10, return_domain_label=True), valid_split_ratio=0),
        *(net.feature_extractor, net.label_classifier, net.domain_classifier),
        target_domain="target",
        lambda_init=recipe.lambda_max,
        adapt_lr=False,
        nb_init_epochs=0,
        nb_adapt_epochs=math.ceil(2 * recipe.batch_size * STEPS / (len(x_s) + len(x_t))),  # of the schedule of lambda
        batch_size=2 * recipe.batch_size,
        init_lr=recipe.lr,
        optimizer={"type": "AdamW", "optim_params": {"weight_decay": recipe.weight_decay, "fused": True}},
    )
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(max_steps=STEPS, accelerator="cpu", limit_val_batches=0, **off).fit(adapter)


LIBRARIES = {"skada": with_skada, "pytorch-adapt": with_pytorch_adapt, "pykale": with_pykale}


def by_library(
    train_with: Callable[[DANN, Recipe, Tensor, Tensor, Tensor], None], settings: Settings, data: Data
) -> tuple[DANN, float]:
    """The network that a library trained, and images a second from the first batch in G_f to the end."""
    assert data.unlabelled is not None
    assert data.labelled.labels is not None
    seed_step(settings.seed, -1)  # as train.build, for the same weights
    np.random.seed(settings.seed)  # two of them draw batches by it
    net, seen, began = DANN(norm="shared"), 0, 0.0
    x_s, x_t = (net.preprocess(as_input(half.images[:])).contiguous() for half in (data.labelled, data.unlabelled))

    def count(_: nn.Module, images: tuple[Tensor]) -> None:
        nonlocal seen, began
        seen, began = seen + len(images[0]), began or time.perf_counter()

    net.feature_extractor.register_forward_pre_hook(count)
    train_with(net, settings.values, x_s, data.labelled.labels, x_t)
    seconds = time.perf_counter() - began
    assert seen == 2 * settings.values.batch_size * STEPS, f"{train_with.__name__}: {seen} images"
    return net, seen / seconds
