"""What SAM saves: the base optimizer's checkpoint, with options and counts of its own in groups."""

from typing import Any

from steppe.optim._optimizer_wrapper import share_hooks
from steppe.optim._sam_options import fitted_groups
from steppe.optim._sam_passes import Passes
from steppe.optim._sam_perturbations import rho_name
from steppe.optim._sam_perturbing import PerturbingWrapper

# What copies and pickles hold besides the counts.
_HELD = ("base_optimizer", "direction", "first_step", "module", "required", "has_default_rho")


class CheckpointedSAM(PerturbingWrapper):
    """A perturbing wrapper with checkpoints, copies and pickles."""

    def __getstate__(self) -> dict[str, Any]:
        if self._restore_point.is_set:
            raise RuntimeError(
                "SAM cannot be copied or pickled while its parameters are perturbed, as the copy "
                "could not restore them: call restore() first"
            )
        return {name: getattr(self, name) for name in _HELD} | {"counts": self._passes.counts()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base_optimizer" not in state:
            # Frameworks give optimizers new state and groups so.
            self.base_optimizer.__setstate__(state)
            self.param_groups = self.base_optimizer.param_groups
            return
        # Copies from before it was known have what they were given.
        state = {"has_default_rho": False, **state}
        for name in _HELD:
            setattr(self, name, state[name])
        names = (rho_name(self.base_optimizer.defaults), "metric")
        self.own_options = {name: self.base_optimizer.defaults[name] for name in names}
        self._begin_perturbing()
        self._passes.resume([state.get("counts", {})])
        share_hooks(self, self.base_optimizer)
        # Not Optimizer.__init__, which would make groups and state beside the base's: __setstate__
        # makes only the hooks that are missing.
        super().__setstate__({})

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's checkpoint, SAM's options and counts in its groups."""
        saved = super().state_dict()
        counts = self._passes.counts()
        return {**saved, "param_groups": [group | counts for group in saved["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint into the base optimizer.

        Raises
        ------
        ValueError
            The checkpoint does not fit, or was not saved from a SAM. Nothing has changed.
        """
        groups = fitted_groups(state_dict, self.base_optimizer, self.direction)
        passes = Passes()
        groups = passes.resume(groups)
        self.base_optimizer.load_state_dict({**state_dict, "param_groups": groups})
        self._passes.resume([passes.counts()])
