#!/usr/bin/env bash
# safetensors: numpy arrays that are transposed or in Fortran order are saved with their numbers in other places.
#
# Versions: safetensors 0.8.0, numpy 2.3.5 (torch 2.13.0, gguf 0.19.0 for comparison)
# Guess:    safetensors.numpy.save_file saves the array that it is given, or refuses it, as safetensors.torch does.
# Seen:     it writes the array's shape with the numbers in the order in which they lie in memory: of [[0 1 2] [3 4 5]], saved as `weight.T`,
#           [[0 1] [2 3] [4 5]] is read. Nothing is said, and the shape is right. safetensors.torch refuses such a tensor;
#           numpy.save and gguf write it rightly.
# Effect:   a converter that transposes weights in numpy (Conv1D of GPT-2, JAX and Keras kernels) writes a file that loads and is another model.
#           Pass numpy.ascontiguousarray(x), or save torch tensors, as Talaria does.
source "$(dirname "$0")/install.sh" safetensors==0.8.0 numpy==2.3.5 torch==2.13.0 gguf==0.19.0
py - <<'PY'
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from gguf import GGUFReader, GGUFWriter

weight = np.arange(6, dtype=np.float32).reshape(2, 3)
for name, given in {"weight": weight, "weight.T": weight.T, "asfortranarray(weight)": np.asfortranarray(weight)}.items():
    safetensors.numpy.save_file({"x": given}, "x.safetensors")
    read = safetensors.numpy.load_file("x.safetensors")["x"]
    print(f"{name}: given {given.tolist()}, read {read.tolist()}")
    assert read.shape == given.shape
    assert np.array_equal(read, given) == (name == "weight")
    np.save("x.npy", given)
    assert np.array_equal(np.load("x.npy"), given)
    safetensors.numpy.save_file({"x": np.ascontiguousarray(given)}, "x.safetensors")
    assert np.array_equal(safetensors.numpy.load_file("x.safetensors")["x"], given)
try:
    safetensors.torch.save_file({"x": torch.from_numpy(weight).T}, "x.safetensors")
except ValueError as error:
    print("safetensors.torch:", str(error).splitlines()[0][:70])
else:
    raise SystemExit("safetensors.torch saves a transposed tensor now")
writer = GGUFWriter("x.gguf", "llama")
writer.add_tensor("x", weight.T)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
assert np.array_equal(GGUFReader("x.gguf").tensors[0].data, weight.T)
PY
