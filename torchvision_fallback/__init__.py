"""The image stage without DALI: a region decoder of our own, simplejpeg or Pillow decodes, torch resizes.

Executes the same :class:`dali_imagenet.plan.BatchPlan` as DALI does, in torch DataLoader workers or in-process.
"""
