region             = "eu-west-1"
environment        = "prod"
vpc_id             = "vpc-0a1b2c3d4e5f67890"
db_instance_class  = "db.r6g.2xlarge"
db_name            = "crm"
db_master_username = "crm_admin"
db_master_password = "Lk4$$hfPw==90~a"
kms_key_id         = "arn:aws:kms:eu-west-1:123456789012:key/00d82192-f8af-40d4-972a-d6dc90918d9e"
secret_arn         = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:crm/db-AbC12x"
datadog_api_key    = "f0131b7daa6d9FAKE635dfea6e9ddbdb"
datadog_app_key    = "a1af894d56706295b7a18b10f7a826b39FAKE77c"
cloudflare_api_token = "qdJN6rrsYSzsSGXFAKE5O2oNFHt2dwfoStU6gUlh"
cloudflare_zone_id = "4c31a4cef84ba1073c775a79047a5c28"
ssh_public_key     = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI8kLLrQtGPtP8TjzgDwxjOtxIzGGpmv8IsBdP5fZj0Qu ops@bastion"
tags = {
  Owner      = "team-data"
  CostCenter = "4711"
}
enable_deletion_protection = true
