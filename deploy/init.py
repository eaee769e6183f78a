"""Prepare a deployment: migrations, roles, users, the GPU pool. Safe to run again, and it is run at every `up`.

Passwords come from the environment, never from arguments. A user that exists gets the password of the environment, so that
rotating a secret is: change .env, run init again.
"""

from __future__ import annotations

import os
import subprocess

# What an operator may do beyond looking: start, stop and clear runs of `sft`. Without "can_edit" on task instances and on HITL
# details, nobody but the admin can answer the approval before a promotion or mark it as given; `rollback` is another DAG.
OPERATOR_ROLE = "Operator"
OPERATOR_GRANTS = [
    ("can_create", "DAG Run:sft"),
    ("can_edit", "DAG:sft"),
    ("can_edit", "DAG Runs"),
]


def main() -> None:
    subprocess.run(["airflow", "db", "migrate"], check=True)
    subprocess.run(
        ["airflow", "pools", "set", "gpu", os.environ.get("GPU_SLOTS", "1"), "One slot is one node's GPUs."], check=True
    )
    create_users()


def create_users() -> None:
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        viewer = manager.find_role("Viewer")
        operator = manager.add_role(OPERATOR_ROLE) or manager.find_role(OPERATOR_ROLE)
        for permission in viewer.permissions:
            manager.add_permission_to_role(operator, permission)
        for action, resource in OPERATOR_GRANTS:
            manager.add_permission_to_role(operator, manager.create_permission(action, resource))
        for name, role in (("admin", "Admin"), ("operator", OPERATOR_ROLE), ("viewer", "Viewer")):
            password = os.environ[f"{name.upper()}_PASSWORD"]
            user = manager.find_user(username=name)
            if user:
                manager.reset_password(user.id, password)
            else:
                manager.add_user(name, name.capitalize(), "", f"{name}@talaria.invalid", manager.find_role(role), password)


if __name__ == "__main__":
    main()
