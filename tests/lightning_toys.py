"""A script for Lightning that knows nothing of this library."""

import logging

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Segmenter(pl.LightningModule):
    """Learns thresholds of noise, with dropout, so that any disturbance of its random numbers shows.

    Logs ``train_epoch`` in its own ``on_train_epoch_end``, which comes after that of callbacks.
    """

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 3, 1)
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, index):
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        self.log("train_epoch", float(self.current_epoch))

    def validation_step(self, batch, index):
        images, labels = batch
        logits = self(images)
        self.log("val_acc", (logits.argmax(1) == labels).float().mean())
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)]


def loaders():
    images = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0] > 0).long() + (images[:, 0] > 1).long()
    data = TensorDataset(images, labels)
    return DataLoader(data, 4, shuffle=True), DataLoader(data, 8)


def fitted(folder, callbacks=(), *, num_epochs=3, ckpt_path=None, validates=True, module=None, **arguments):
    """Return the Trainer and the module after the script has run."""
    pl.seed_everything(1, verbose=False)
    module = module or Segmenter()
    trainer = pl.Trainer(
        max_epochs=num_epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=CSVLogger(folder),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    training, validation = loaders()
    trainer.fit(module, training, validation if validates else None, ckpt_path=ckpt_path)
    return trainer, module
