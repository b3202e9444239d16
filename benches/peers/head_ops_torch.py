"""What heads are made of in PyTorch, channels_last: the rows of `cargo bench -p moco-engine --bench head`.

    python benches/peers/head_ops_torch.py [batch] [threads]
"""

import sys
import time

import torch
import torch.nn.functional as F

batch = int(sys.argv[1]) if len(sys.argv) > 1 else 4
torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
print(f"{'torch ' + torch.__version__ + ', batch ' + str(batch):<42} {'forward':>9} {'backward':>9}")


def fastest(run, seconds=0.4):
    best, start = 1e9, time.perf_counter()
    while time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best


def row(what, function, *inputs, modules=()):
    y = function(*inputs)
    dy = torch.randn_like(y)
    parameters = [p for module in modules for p in module.parameters()]
    with torch.no_grad():
        forward = fastest(lambda: function(*inputs))
    backward = fastest(lambda: torch.autograd.grad(y, [*inputs, *parameters], dy, retain_graph=True))
    print(f"{what:<42} {forward:>9.3f} {backward:>9.3f}", flush=True)


def maps(channels, side):
    return torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()


for side, c_in, c_out in [(64, 128, 128), (32, 256, 256), (128, 64, 64), (64, 128, 2)]:
    conv = torch.nn.Conv2d(c_in, c_out, 3, padding=1).to(memory_format=torch.channels_last)
    row(f"conv 3×3 {c_in}→{c_out}, bias, ReLU, {side}×{side}", lambda x: torch.relu(conv(x)), maps(c_in, side), modules=[conv])
for side, channels in [(64, 128), (16, 256)]:
    norm = torch.nn.GroupNorm(32, channels)
    row(f"group norm 32, ReLU, {channels} channels, {side}×{side}", lambda x: torch.relu(norm(x)), maps(channels, side), modules=[norm])
for source, target, channels, mode in [(32, 64, 128, "nearest"), (32, 64, 128, "bilinear"), (128, 512, 2, "bilinear"), (128, 512, 21, "bilinear")]:
    row(f"{mode.capitalize()} {source}→{target}, {channels} channels", lambda x: F.interpolate(x, size=(target, target), mode=mode), maps(channels, source))
row("concat 128+128 channels, 64×64", lambda a, b: torch.cat([a, b], 1), maps(128, 64), maps(128, 64))
