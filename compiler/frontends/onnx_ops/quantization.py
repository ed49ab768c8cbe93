OPS: dict = {}
