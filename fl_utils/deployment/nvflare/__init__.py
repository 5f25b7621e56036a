"""A consortium on NVFlare that is governed: each hospital's owner decides what is computed, and its rules enforce it.

`settings` says who there is and which rules can refuse. A project admin makes the consortium (`new_consortium`), its
processes are `Running`; a researcher reads cards, plans (`plan_of`, `sign_plan`) and hands in over a `Line`; an owner
decides in the `Store`, by commands or on a page (`serve_page`), and has an `AuditLog`.
"""

import importlib

# Reached by name, so that what needs neither NVFlare nor TensorFlow loads neither.
_PLACES = {
    "AUDIT": "settings", "ConsortiumError": "settings", "OUTPUTS": "settings", "ROLES": "settings", "RULES": "settings", "RuleBroken": "settings",
    "data_folder": "settings", "hospital_names": "settings", "member_folder": "settings",
    "AuditLog": "audit", "read_log": "audit", "verify_log": "audit", "Store": "store",
    "TrainingPlan": "plan", "difference": "plan", "make_plan": "plan", "read_signed": "plan", "rendered": "plan", "sign_plan": "plan", "visible": "plan",
    "make_card": "card", "plan_of": "card", "write_mock": "card",
    "add_person": "consortium", "authority_of": "consortium", "default_people": "consortium", "distribute_revocations": "consortium", "hospitals_in": "consortium",
    "new_consortium": "consortium", "revoke": "consortium",
    "Running": "processes", "down": "processes", "member_states": "processes", "serve_member": "processes", "write_training_job": "jobs", "Answer": "line", "Line": "line", "serve_page": "page",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
