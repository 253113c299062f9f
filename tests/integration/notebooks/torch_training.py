"""Training a network with PyTorch on the processor."""

# %%
import hashlib

import torch
from torch import nn

torch.manual_seed(1)
torch.set_num_threads(2)
inputs = torch.randn(2000, 20)
targets = (inputs[:, :5].prod(dim=1, keepdim=True) > 0).float()

# %%
model = nn.Sequential(
    nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
dataset = torch.utils.data.TensorDataset(inputs, targets)
loader = torch.utils.data.DataLoader(dataset, batch_size=100, shuffle=True)


# %%
def epoch():
    for batch, wanted in loader:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch), wanted)
        loss.backward()
        optimizer.step()
    schedule.step()
    return loss.item()


losses = [epoch() for _ in range(3)]
print(losses)

# %%
pending = nn.functional.mse_loss(model(inputs[:10]), targets[:10])

# %%
losses += [epoch() for _ in range(3)]
print(losses)

# %%
product = torch.randn(600, 600) @ torch.randn(600, 600)
digest = hashlib.sha256(product.numpy().tobytes())
for parameter in model.parameters():
    digest.update(parameter.detach().numpy().tobytes())
model.zero_grad()
print(digest.hexdigest(), pending.item())
