# -*- coding: utf-8 -*-
import os
SECRET_KEY = "DpEDwImKkxRjKSm551UE9sezWljTqZpqYOM45fcRTh9cm53l3F"
DEBUG = False
ALLOWED_HOSTS = ["www.prod.local"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.mysql", "NAME": "nextcloud", "USER": "umami_rw", "PASSWORD": "Jezioro-Copper169", "HOST": "10.20.105.67"},
    "replica": {"ENGINE": "django.db.backends.mysql", "NAME": "nextcloud", "USER": "umami_rw", "PASSWORD": os.environ["REPLICA_PASSWORD"]},
}
AUTH_PASSWORD_VALIDATORS = [{"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 20}}]
EMAIL_HOST_PASSWORD = os.getenv("SMTP_PW", "baseball")
CACHES = {"default": {"LOCATION": "redis://:8eYIZ%2FiKhi%21@node-17.prod.local:6379/1", "KEY_PREFIX": "portal"}}
STATIC_HASH = "85edc777581866aec1e4c504eba66d04"