"""The image stage without DALI: Pillow (or simplejpeg where it is installed) decodes, torch resizes.

Executes the same :class:`dali_imagenet.plan.BatchPlan` as DALI does, in torch DataLoader workers or in-process.
"""
