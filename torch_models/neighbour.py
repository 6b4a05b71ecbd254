"""The same model in transformers, trained and decoded as its users do: what we are measured by."""

import torch
import torch.nn.functional as F
import transformers

CACHES = "past_key_values", "cache_params"  # of attention, of a recurrence


class Neighbour:
    """The model of a folder in upstream's format, in float32 on the CPU or `device`."""

    def __init__(self, folder, compile=False, device="cpu"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model, self.device = model.to(device), device
        self.params = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.params, lr=1e-4, weight_decay=0.1, fused=True)
        if compile:
            self.model.compile()

    def step(self, tokens, targets):
        """One training step on tokens and targets (B, T); the loss."""
        tokens, targets = (torch.tensor(a, dtype=torch.long, device=self.device)
                           for a in (tokens, targets))
        logits = self.model(tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def decode(self, prompt):
        """Greedy tokens after prompt (1, T), one at a time, with transformers' cache."""
        tokens, cache = torch.tensor(prompt, dtype=torch.long, device=self.device), {}
        while True:
            output = self.model(tokens, **cache, use_cache=True)
            cache = {name: output[name] for name in CACHES if name in output}
            tokens = output.logits[:, -1:].argmax(-1)
            yield tokens.item()
