"""Lightning: a module of a dozen lines, on as many devices as its Trainer is given.

python lightning_module.py FACES resnet18
python lightning_module.py FACES resnet18 2
"""

import sys

import lightning
import timm
import torch
from torch.utils.data import DataLoader

import ngd_timm
from ngd_timm.data import load_fer

folder, backbone, epochs = sys.argv[1], sys.argv[2], 2
devices = int(sys.argv[3]) if len(sys.argv) > 3 else 1


class Distillation(lightning.LightningModule):
    def __init__(self, model, criterion):
        super().__init__()
        self.model, self.criterion = model, criterion

    def training_step(self, batch):
        logits, embedding = self.model(batch["image"], return_embedding=True)
        losses = self.criterion(logits, embedding, batch["label"], epoch=self.current_epoch)
        self.log_dict(losses)
        return losses["loss"]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-4, weight_decay=0.05)


grid = ngd_timm.PrototypeGrid.default()
model = ngd_timm.wrap(backbone, num_classes=8, grid=grid)
ngd_timm.set_input(model.student, image_size=64)
criterion = ngd_timm.NeuroGazeLoss(grid, num_classes=8, epochs=epochs, gather_distributed=True)

transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model.student), is_training=True)
faces = load_fer("schematic", folder, "train").with_transform(
    lambda rows: {"image": [transform(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}
)
loader = DataLoader(faces, batch_size=8 // devices, shuffle=True)
trainer = lightning.Trainer(max_epochs=epochs, devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False)
trainer.fit(Distillation(model, criterion), loader)

if trainer.is_global_zero:
    ngd_timm.save_student(model.student, "student")
    student = timm.create_model("local-dir:student", pretrained=True).eval()
