"""Encoded bytes -> RGB pixels, exactly as torchvision's ImageFolder loader decodes them."""
