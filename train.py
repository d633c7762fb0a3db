"""The same as `rml-jax train`, from a checkout: python train.py --config=FILE[:VARIANT] --workdir=DIR"""

from rml_jax.commands.train import main

if __name__ == "__main__":
    main()
