"""Makes the fixtures whose makers are Python libraries, and two by what is documented of them.

    python -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make.py
"""
import base64
import hashlib
import hmac
import io
import json
import os
import pathlib
import struct
import sys
import tempfile

import argon2
import bcrypt
from passlib import hash as passlib
from werkzeug.security import generate_password_hash

here = pathlib.Path(__file__).resolve().parent.parent.parent
password = "a quite good password"


def write(name, hashes):
    with open(here / name, "w") as f:
        for username, value in hashes.items():
            f.write(json.dumps({"username": username, "password_hash": value}) + "\n")


# Werkzeug, which Flask uses.
write("werkzeug.ndjson", {
    "werkzeug.scrypt": generate_password_hash(password),
    "werkzeug.pbkdf2": generate_password_hash(password, "pbkdf2"),
    "werkzeug.pbkdf2-sha1": generate_password_hash(password, "pbkdf2:sha1:5000"),
    "werkzeug.pbkdf2-sha512": generate_password_hash(password, "pbkdf2:sha512:5000"),
})


# argon2-cffi, and what passlib makes for directories and Atlassian's products.
cheap = {"memory_cost": 8192, "time_cost": 2}
write("passlib.ndjson", {
    "argon2-cffi.argon2id": argon2.PasswordHasher(**cheap).hash(password),
    "argon2-cffi.argon2i": argon2.PasswordHasher(type=argon2.Type.I, **cheap).hash(password),
    "passlib.argon2": passlib.argon2.using(memory_cost=8192, time_cost=2).hash(password),
    **{"passlib." + name: getattr(passlib, name).hash(password) for name in (
        "ldap_pbkdf2_sha1", "ldap_pbkdf2_sha256", "ldap_pbkdf2_sha512",
        "ldap_salted_sha1", "ldap_salted_sha256", "ldap_salted_sha512", "atlassian_pbkdf2_sha1")},
})


# ASP.NET Identity's PasswordHasher: a byte for the version; in version 3 then the function,
# the iterations and the size of the salt as big-endian words; the salt; the digest.
def aspnet(prf, iterations):
    salt = os.urandom(16)
    digest = hashlib.pbkdf2_hmac(("sha1", "sha256", "sha512")[prf], password.encode(), salt, iterations, 32)
    return base64.b64encode(b"\1" + struct.pack(">III", prf, iterations, len(salt)) + salt + digest).decode()


salt = os.urandom(16)
write("aspnet.ndjson", {
    "aspnet.v2": base64.b64encode(b"\0" + salt + hashlib.pbkdf2_hmac("sha1", password.encode(), salt, 1000, 32)).decode(),
    "aspnet.v3-core3": aspnet(1, 10_000),
    "aspnet.v3-net7": aspnet(2, 100_000),
})

# WordPress from 6.8 on: wp_hash_password.
inner = base64.b64encode(hmac.new(b"wp-sha384", password.strip().encode(), hashlib.sha384).digest())
write("wordpress.ndjson", {
    "wordpress.6.8": "$wp" + bcrypt.hashpw(inner, bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$"),
    "wordpress.plugin": bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$"),
})

# Zitadel's admin API, /admin/v1/export: the messages of its internal/api/grpc/admin/export.go
# as JSON. Its own hasher, passwap, makes bcrypt by default.
def zitadel(user_id, name, verified, **more):
    return {"userId": user_id, "user": {
        "userName": name, "profile": {"firstName": "F", "lastName": "L", "displayName": "F L", "preferredLanguage": "en"},
        "email": {"email": name if "@" in name else name + "@example.com", **({"isEmailVerified": True} if verified else {})}, **more}}


def zitadel_hash():
    return {"value": bcrypt.hashpw(password.encode(), bcrypt.gensalt(4, b"2a")).decode()}


(here / "zitadel.json").write_text(json.dumps({"orgs": [
    {"orgId": "104133391254874632", "org": {"name": "ACME"}, "humanUsers": [
        zitadel("104133391271651848", "zitadel.first", True, hashedPassword=zitadel_hash()),
        zitadel("104133391271651849", "zitadel.otp", True, hashedPassword=zitadel_hash(), otpCode="NOTASECRET"),
        zitadel("104133391271651850", "zitadel.external", True),
    ], "machineUsers": [{"userId": "104133391271651851", "user": {"userName": "machine", "name": "machine"}}]},
    {"orgId": "104133391254874633", "org": {"name": "users"}, "humanUsers": [
        zitadel("104133391271651852", "zitadel.unverified@example.com", False, hashedPassword=zitadel_hash()),
    ]},
]}, indent=1) + "\n")

# Django with a model of its own that has no username, and second factors of django-otp.
project = tempfile.TemporaryDirectory()
app = pathlib.Path(project.name) / "shop"
app.mkdir()
(app / "__init__.py").touch()
(app / "models.py").write_text('''
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.db import models

class Customer(AbstractBaseUser):
    email = models.EmailField(unique=True)
    is_active = models.BooleanField(default=True)
    joined = models.DateTimeField(auto_now_add=True)
    USERNAME_FIELD = "email"
    objects = BaseUserManager()
''')
sys.path.insert(0, project.name)

import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    AUTH_USER_MODEL="shop.Customer",
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "shop", "django_otp", "django_otp.plugins.otp_totp", "django_otp.plugins.otp_static"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()
call_command("migrate", run_syncdb=True, verbosity=0)

from django_otp.plugins.otp_totp.models import TOTPDevice
from shop.models import Customer

for name, active in (("Customer@example.com", True), ("inactive@example.com", False)):
    one = Customer(email=name, is_active=active)
    one.set_password(password)
    one.save()
TOTPDevice.objects.create(user=one, name="phone", confirmed=True, key="00" * 20)
out = io.StringIO()
call_command("dumpdata", indent=1, stdout=out)
(here / "django-custom.json").write_text(out.getvalue())
