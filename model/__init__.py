"""What a researcher edits: nets, metrics, data, augmentation."""
