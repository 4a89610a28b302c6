"""accelerate: one process or several, any precision, as its launcher says.

python accelerate_loop.py FACES resnet18
accelerate launch --num_processes 2 accelerate_loop.py FACES resnet18
torchrun --nproc-per-node 2 accelerate_loop.py FACES resnet18  # CPUs too
"""

import sys

import timm
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader

import ngd_timm
from ngd_timm.data import load_fer

folder, backbone, epochs = sys.argv[1], sys.argv[2], 2
accelerator = Accelerator(
    cpu=not torch.cuda.is_available(),  # without it processes on CPUs would train apart
    dataloader_config=DataLoaderConfiguration(split_batches=True),  # batch_size is that of all processes together
)

grid = ngd_timm.PrototypeGrid.default()
model = ngd_timm.wrap(backbone, num_classes=8, grid=grid)
ngd_timm.set_input(model.student, image_size=64)
# the losses are those of all processes' rows together
criterion = ngd_timm.NeuroGazeLoss(grid, num_classes=8, epochs=epochs, gather_distributed=True)
criterion.to(accelerator.device)  # it has nothing to train, so it is not prepared

transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model.student), is_training=True)
faces = load_fer("schematic", folder, "train").with_transform(
    lambda rows: {"image": [transform(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}
)
loader = DataLoader(faces, batch_size=8, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.05)
trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)

for epoch in range(epochs):
    for batch in loader:
        logits, embedding = trained(batch["image"], return_embedding=True)
        losses = criterion(logits, embedding, batch["label"], epoch=epoch)
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        optimizer.step()

if accelerator.is_main_process:
    ngd_timm.save_student(accelerator.unwrap_model(trained).student, "student")
    student = timm.create_model("local-dir:student", pretrained=True).eval()
accelerator.end_training()
