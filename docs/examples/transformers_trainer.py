"""transformers' Trainer. It keeps the columns that `forward` names, and its collator calls the label `labels`.

So it needs no flags; with other names it takes remove_unused_columns=False and label_names=[...].

python transformers_trainer.py FACES resnet18
torchrun --nproc-per-node 2 transformers_trainer.py FACES resnet18
"""

import sys

import timm
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import ngd_timm
from ngd_timm.data import load_fer

folder, backbone, epochs = sys.argv[1], sys.argv[2], 2


class Distillation(torch.nn.Module):
    def __init__(self, model, criterion):
        super().__init__()
        self.model, self.criterion, self.epoch = model, criterion, 0.0

    def forward(self, image, labels):
        logits, embedding = self.model(image, return_embedding=True)
        loss = self.criterion(logits, embedding, labels, epoch=self.epoch)["loss"]
        return {"loss": loss, "logits": logits}


class Epoch(TrainerCallback):
    def on_epoch_begin(self, args, state, control, **kwargs):
        distillation.epoch = state.epoch  # which D-Geo's ramp goes by


grid = ngd_timm.PrototypeGrid.default()
model = ngd_timm.wrap(backbone, num_classes=8, grid=grid)  # a TimmWrapperForImageClassification will do, too
ngd_timm.set_input(model.student, image_size=64)
criterion = ngd_timm.NeuroGazeLoss(grid, num_classes=8, epochs=epochs, gather_distributed=True)
distillation = Distillation(model, criterion)
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model.student), is_training=True)
faces = load_fer("schematic", folder, "train").with_transform(
    lambda rows: {"image": [transform(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}
)
arguments = TrainingArguments(
    "trainer",
    num_train_epochs=epochs,
    per_device_train_batch_size=4,
    use_cpu=not torch.cuda.is_available(),  # without it processes on CPUs would train apart
    report_to="none",
)
trainer = Trainer(distillation, arguments, train_dataset=faces, callbacks=[Epoch])
trainer.train()
if trainer.is_world_process_zero():
    ngd_timm.save_student(model.student, "student")
    student = timm.create_model("local-dir:student", pretrained=True).eval()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else a process may abort as it ends
