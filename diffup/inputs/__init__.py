"""What users give, read and checked: images, masks, annotations, strokes."""
