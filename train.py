"""Trains RML: python train.py --config=FILE[:VARIANT] --workdir=DIR [--config.key=value]"""

from rml_jax.commands.train import main

if __name__ == "__main__":
    main()
