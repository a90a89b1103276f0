import pytest
from jsonargparse import Namespace

from biocnn.errors import DataError
from biocnn.training.segmentation import fill_channels


def configuration(**init_args: object) -> Namespace:
    network = Namespace(class_path="a.Network", init_args=Namespace(**init_args))
    return Namespace(model=Namespace(network=network, refinement_steps=1), data=Namespace(manifest="drive"))


def test_channels_are_those_of_the_manifest() -> None:
    config = configuration(in_channels=None, dimensions=2)
    fill_channels(config)
    assert config.model.network.init_args.in_channels == 3
    fill_channels(configuration(dimensions=2))  # a network that is given no number of channels


@pytest.mark.parametrize("name", ["dimensions", "spatial_dims"])
@pytest.mark.parametrize("channels", [{"in_channels": None}, {"in_channels": 3}, {}])
def test_networks_of_three_dimensions_are_refused(name: str, channels: dict[str, int | None]) -> None:
    with pytest.raises(DataError, match=rf"init_args\.{name} is 3, .*planes of stacks one by one\. Set it to 2"):
        fill_channels(configuration(**{name: 3}, **channels))
