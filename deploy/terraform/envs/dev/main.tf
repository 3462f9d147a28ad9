# One installation for development: small brokers, spot nodes, one NAT gateway. TEARDOWN.md says how it goes away.

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      project     = local.name
      environment = "dev"
    }
  }
}

module "pipeline" {
  source = "../../modules/pipeline"

  name      = local.name
  region    = var.region
  cidr      = "10.40.0.0/16"
  bucket    = var.bucket
  api_cidrs = var.api_cidrs
  mail_to   = var.mail_to
  limit_usd = 600

  nat_per_zone  = false
  broker        = { instance_type = "kafka.t3.small", volume_gib = 100 }
  nodes         = { min = 2, desired = 2, max = 4 }
  node_types    = ["m7i-flex.large", "m6i.large"]
  capacity_type = "SPOT"
  warehouse     = { base_rpu = 8, max_rpu = 16, rpu_hours_a_month = 300 }
}

locals {
  name = "iot-pipeline-dev"
}
