"""timm.task and timm's CheckpointSaver, whose checkpoints hold the bare student under timm's own keys.

python timm_task.py FACES resnet18
torchrun --nproc-per-node 2 timm_task.py FACES resnet18
"""

import os
import sys
from argparse import Namespace

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import CheckpointSaver, init_distributed_device
from torch.utils.data import DataLoader, DistributedSampler

import ngd_timm
from ngd_timm.data import load_fer

folder, backbone, epochs = sys.argv[1], sys.argv[2], 2
args = Namespace(device="cuda" if torch.cuda.is_available() else "cpu")
device = init_distributed_device(args)  # fills in args.rank and args.world_size

grid = ngd_timm.PrototypeGrid.default()
model = ngd_timm.wrap(backbone, num_classes=8, grid=grid).to(device)
ngd_timm.set_input(model.student, image_size=64)
criterion = ngd_timm.NeuroGazeLoss(grid, num_classes=8, epochs=epochs)
task = ngd_timm.NeuroGazeTask(model, criterion, device=device, verbose=False)
task.setup_ema(decay=0.99)
optimizer = create_optimizer_v2(model, "adamw", lr=2e-4, weight_decay=0.05)
if args.distributed:
    task.prepare_distributed()

transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model.student), is_training=True)
faces = load_fer("schematic", folder, "train").with_transform(
    lambda rows: {"image": [transform(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}
)
sampler = DistributedSampler(faces, args.world_size, args.rank)
loader = DataLoader(faces, batch_size=8 // args.world_size, sampler=sampler)

os.makedirs("checkpoints", exist_ok=True)
saver = CheckpointSaver(model.student, optimizer, checkpoint_dir="checkpoints", task=task)
for epoch in range(epochs):
    sampler.set_epoch(epoch)
    task.set_epoch(epoch)
    for batch in loader:
        optimizer.zero_grad()
        task(batch["image"].to(device), batch["label"].to(device))["loss"].backward()
        optimizer.step()
        task.update_ema()
    if args.rank == 0:
        saver.save_checkpoint(epoch)

if args.rank == 0:
    student = timm.create_model(backbone, num_classes=8, checkpoint_path="checkpoints/last.pth.tar").eval()
if args.distributed:
    torch.distributed.destroy_process_group()
