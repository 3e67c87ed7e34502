"""Loaders, and the steps of the default one that others share."""

from abc import ABC, abstractmethod
from contextlib import contextmanager

import torch


@contextmanager
def set_default_torch_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _get_quantization_config(model_config, load_config):
    return None


def _initialize_model(model_config, load_config, quant_config=None):
    return model_config.build()


def post_load_weights(model):
    if hasattr(model, "post_load_weights"):
        model.post_load_weights()


class BaseModelLoader(ABC):
    def __init__(self, load_config):
        self.load_config = load_config

    @abstractmethod
    def download_model(self, model_config):
        raise NotImplementedError

    @abstractmethod
    def load_model(self, *, model_config, device_config):
        raise NotImplementedError


class DefaultModelLoader(BaseModelLoader):
    def download_model(self, model_config):
        raise NotImplementedError

    def load_model(self, *, model_config, device_config):
        raise NotImplementedError

    @staticmethod
    def postprocess_weights(model, target_device):
        for module in model.modules():
            method = getattr(module, "quant_method", None)
            if method is not None:
                method.process_weights_after_loading(module)


def get_model_loader(load_config, model_config=None):
    if isinstance(load_config.load_format, type):
        return load_config.load_format(load_config)
    return DefaultModelLoader(load_config)
