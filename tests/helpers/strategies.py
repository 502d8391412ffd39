"""What hypothesis draws in more than one module of the tests."""

from hypothesis import strategies as st

from usbpo.model.ensemble import Architecture


def architectures(widest: int) -> st.SearchStrategy[Architecture]:
    """Ensembles of up to 5 members and 4 hidden layers of at most `widest` units."""
    return st.builds(
        Architecture,
        obs_dim=st.integers(1, 9),
        act_dim=st.integers(1, 3),
        members=st.integers(1, 5),
        elites=st.just(1),
        hidden_layers=st.integers(1, 4),
        hidden_size=st.integers(1, widest),
    )
