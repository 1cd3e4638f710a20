"""``precheck fix``: makes a checkpoint run in a dtype in which it breaks, and proves that it does.

To read top-down: ``fix`` (the remedies in order), ``rescaled`` and ``float32`` (the two that write
something), ``proof`` (what is kept), ``media`` (images and sounds, generated where there is no
processor), ``readings`` (tied copies), ``scales`` (which powers of two change nothing).
"""
