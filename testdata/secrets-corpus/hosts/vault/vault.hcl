ui            = true
cluster_name  = "vault-prod"
api_addr      = "https://vault.example.com:8200"
disable_mlock = false

storage "postgresql" {
  connection_url = "postgres://vault:Tres0r.Tuer@pg01.example.com:5432/vault?sslmode=verify-full"
  table          = "vault_kv_store"
}
listener "tcp" {
  address         = "0.0.0.0:8200"
  tls_cert_file   = "/etc/vault.d/tls/vault.crt"
  tls_key_file    = "/etc/vault.d/tls/vault.key"
  tls_min_version = "tls12"
}
seal "transit" {
  address    = "https://vault-seal.example.com:8200"
  token      = "hvs.FAKEnZcPqYP6p_8zS3xleXj5SDmy"
  key_name   = "autounseal"
  mount_path = "transit/"
}
telemetry { prometheus_retention_time = "30s" }
max_lease_ttl     = "768h"
