"""Registers, refreshes, lists the sessions and reads a refusal.

The package authctl_client is made of the OpenAPI document:

    openapi-generator-cli generate -g python --package-name authctl_client \
        -i ../../../cmd/authctl/openapi/openapi.json -o generated
"""
import os
import time

import authctl_client as authctl

host = os.environ.get("AUTHCTL_URL", "http://localhost:8080")
name, password = f"python-{time.time_ns()}", "correct horse battery staple"

with authctl.ApiClient(authctl.Configuration(host=host)) as client:
    account, session = authctl.AccountApi(client), authctl.SessionApi(client)
    tokens = account.register(authctl.RegisterRequest(username=name, password=password, device_name="example"))
    tokens = session.refresh(authctl.RefreshRequest(refresh_token=tokens.refresh_token))

    client.configuration.access_token = tokens.access_token
    for one in session.list_sessions().sessions:
        print("signed in:", one.device_name, one.last_used_at.isoformat(), one.current)

    try:
        account.login(authctl.LoginRequest(username=name, password="wrong"))
    except authctl.ApiException as refused:
        print("refused:", refused.status, refused.data.code, refused.data.title)
