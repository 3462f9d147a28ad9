# One installation for production: a NAT gateway in each zone, larger brokers, nodes on demand.

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      project     = local.name
      environment = "prod"
    }
  }
}

module "pipeline" {
  source = "../../modules/pipeline"

  name      = local.name
  region    = var.region
  cidr      = "10.50.0.0/16"
  bucket    = var.bucket
  api_cidrs = var.api_cidrs
  mail_to   = var.mail_to
  limit_usd = 3000

  nat_per_zone  = true
  broker        = { instance_type = "kafka.m7g.large", volume_gib = 1000 }
  nodes         = { min = 3, desired = 3, max = 12 }
  node_types    = ["m7i.xlarge"]
  capacity_type = "ON_DEMAND"
  warehouse     = { base_rpu = 16, max_rpu = 64, rpu_hours_a_month = 1500 }
}

locals {
  name = "iot-pipeline-prod"
}
