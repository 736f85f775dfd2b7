datacenter = "fra1"
data_dir   = "/opt/redis/current"
node_name  = "proxy01"
encrypt    = "7HtbiCT8x6GZSKhALpL/nwUpS7dLtVYAgqZp+GobTTc="   # gossip
node_id    = "248a54fd-5cea-40b5-9786-d6600fbc5305"
acl {
  enabled = false
  default_policy = "deny"
  tokens {
    initial_management = "90c1b4fe-90c0-4f23-a95e-26f85f144f0a"
    agent = "3ae006aa-4e63-4474-b632-46ac3a31659f"
  }
}
vault {
  address = "https://git.stadtwerke-nord.test/"
}
auto_auth_sink = "/run/vault/token"
secret_id_file_path = "/run/secrets/admin-password.txt"
key_file   = "/etc/ssl/private/gateway.key"
