"""The same as `rml-jax eval`, from a checkout: python eval.py --workdir=DIR"""

from rml_jax.commands.eval import main

if __name__ == "__main__":
    main()
