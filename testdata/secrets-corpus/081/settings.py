# settings.py verwaltet von Ansible - nicht von Hand ändern
# -*- coding: utf-8 -*-
import os
SECRET_KEY = "MXAihA6ltsUJdG7xfAyQYiDibtQBUYGoc65TQkAB4p618Rsh87"
DEBUG = False
ALLOWED_HOSTS = ["www.svc.cluster.local"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.mysql", "NAME": "kundendaten", "USER": "svc_web", "PASSWORD": "MsXGj7Fa1onJzlOyXrA8kQDi2", "HOST": "192.168.218.224"},
    "replica": {"ENGINE": "django.db.backends.mysql", "NAME": "kundendaten", "USER": "svc_web", "PASSWORD": os.environ["REPLICA_PASSWORD"]},
}
AUTH_PASSWORD_VALIDATORS = [{"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 15}}]
EMAIL_HOST_PASSWORD = os.getenv("SMTP_PW", "master01")
CACHES = {"default": {"LOCATION": "redis://:Papier%23598@vpn-gw.svc.cluster.local:6379/1", "KEY_PREFIX": "portal"}}
LANGUAGE_CODE, TIME_ZONE = "de-de", "America/New_York"
STATIC_HASH = "e3fc5396769c2f4ee4b80879b64e0a19"
# SOCIAL_AUTH_SECRET = "8aeeeb92b9109e121f29f32e5b2e4072"
