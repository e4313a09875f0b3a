"""Engines without DALI: torch DataLoader workers that decode, resize and augment, and the reference by torchvision.

They execute the same `dali_imagenet.plan.batch_plan.BatchPlan` as DALI does.
"""
