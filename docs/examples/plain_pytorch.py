"""Plain PyTorch, in one process or under DistributedDataParallel.

python plain_pytorch.py FACES resnet18
torchrun --nproc-per-node 2 plain_pytorch.py FACES resnet18
"""

import os
import sys

import timm
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import ngd_timm
from ngd_timm.data import load_fer

folder, backbone, epochs = sys.argv[1], sys.argv[2], 2
rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # from torchrun
device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
if processes > 1:
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

grid = ngd_timm.PrototypeGrid.default()
model = ngd_timm.wrap(backbone, num_classes=8, grid=grid).to(device)
ngd_timm.set_input(model.student, image_size=64)
# the losses are those of all processes' rows together
criterion = ngd_timm.NeuroGazeLoss(grid, num_classes=8, epochs=epochs, gather_distributed=True).to(device)
trained = DistributedDataParallel(model) if processes > 1 else model

transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model.student), is_training=True)
faces = load_fer("schematic", folder, "train").with_transform(
    lambda rows: {"image": [transform(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}
)
sampler = DistributedSampler(faces, processes, rank)
loader = DataLoader(faces, batch_size=8 // processes, sampler=sampler)

optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.05)
for epoch in range(epochs):
    sampler.set_epoch(epoch)
    for batch in loader:
        logits, embedding = trained(batch["image"].to(device), return_embedding=True)
        losses = criterion(logits, embedding, batch["label"].to(device), epoch=epoch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()

if rank == 0:
    ngd_timm.save_student(model.student, "student")
    student = timm.create_model("local-dir:student", pretrained=True).eval()
if processes > 1:
    torch.distributed.destroy_process_group()
