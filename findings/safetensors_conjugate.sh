#!/usr/bin/env bash
# safetensors: a conjugated tensor, or the imaginary part of one, is saved with the other sign.
#
# Versions: safetensors 0.8.0, torch 2.13.0 (CPU)
# Guess:    save_file writes the numbers that the tensor shows, as torch.save does, or refuses it, as it refuses a transposed one.
# Seen:     torch keeps a conjugation as a mark on the tensor and changes no number; so with a negation, as in x.conj().imag. save_file writes the
#           numbers without the mark: 1-2j is loaded as 1+2j and -2.0 as 2.0. is_contiguous() is true, and nothing is said.
# Effect:   complex rotary tables (freqs_cis), spectral layers or their gradients come back rotated in the other direction. Save x.resolve_conj()
#           or x.resolve_neg(). Talaria saves real parameters only.
source "$(dirname "$0")/install.sh" safetensors==0.8.0 torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
from safetensors.torch import load_file, save_file

angles = torch.polar(torch.ones(2), torch.tensor([0.5, 1.0]))
cases = {"conjugate": angles.conj(), "imaginary part": torch.tensor([1 + 2j]).conj().imag}
for name, tensor in cases.items():
    save_file({"table": tensor}, "table.safetensors")
    torch.save(tensor, "table.pt")
    loaded, other = load_file("table.safetensors")["table"], torch.load("table.pt")
    print(f"{name}: {tensor.tolist()}, from safetensors {loaded.tolist()}, from torch.save {other.tolist()}")
    assert tensor.is_contiguous() and torch.equal(other, tensor)
    assert not torch.equal(loaded, tensor) and torch.equal(loaded, tensor.conj() if tensor.is_complex() else -tensor)
    save_file({"table": tensor.resolve_conj().resolve_neg()}, "table.safetensors")
    assert torch.equal(load_file("table.safetensors")["table"], tensor)
PY
