"""How divcon runs on this machine: processes, devices, files, locks and signals, in PyTorch's words."""
