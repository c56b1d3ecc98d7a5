"""What net.py is made of: building a net by name, weights from files, layer groups. May import include, utils, params.

build.py makes a net from its name and arguments, and tries it; backbones.py those of torchvision and timm; weights.py
loads weights into it; groups.py divides it into layer groups and freezes them. Start reading at build.py.
"""
