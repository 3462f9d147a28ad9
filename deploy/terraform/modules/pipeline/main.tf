# A whole installation. The environments differ in sizes, and in nothing else.

module "network" {
  source = "../network"

  name         = var.name
  region       = var.region
  cidr         = var.cidr
  nat_per_zone = var.nat_per_zone
  kms_key_arn  = aws_kms_key.this.arn
}

module "registry" {
  source = "../registry"

  name        = var.name
  kms_key_arn = aws_kms_key.this.arn
}

module "lake" {
  source = "../lake"

  bucket      = var.bucket
  kms_key_arn = aws_kms_key.this.arn
}

module "eks" {
  source = "../eks"

  name           = var.name
  subnet_ids     = module.network.private_subnet_ids
  api_cidrs      = var.api_cidrs
  instance_types = var.node_types
  capacity_type  = var.capacity_type
  nodes          = var.nodes
  kms_key_arn    = aws_kms_key.this.arn
}

module "msk" {
  source = "../msk"

  name                     = var.name
  vpc_id                   = module.network.vpc_id
  subnet_ids               = module.network.private_subnet_ids
  client_security_group_id = module.eks.node_security_group_id
  instance_type            = var.broker.instance_type
  volume_gib               = var.broker.volume_gib
  kms_key_arn              = aws_kms_key.this.arn
}

module "redshift" {
  source = "../redshift"

  name                     = var.name
  vpc_id                   = module.network.vpc_id
  subnet_ids               = module.network.private_subnet_ids
  client_security_group_id = module.eks.node_security_group_id
  lake_arn                 = module.lake.arn
  base_rpu                 = var.warehouse.base_rpu
  max_rpu                  = var.warehouse.max_rpu
  rpu_hours_a_month        = var.warehouse.rpu_hours_a_month
  kms_key_arn              = aws_kms_key.this.arn
}

module "identity" {
  source = "../identity"

  name              = var.name
  cluster_name      = module.eks.cluster_name
  kafka_cluster_arn = module.msk.cluster_arn
  lake_arn          = module.lake.arn
  workgroup_arn     = module.redshift.workgroup_arn
  kms_key_arn       = aws_kms_key.this.arn
}

module "alarms" {
  source = "../alarms"

  name      = var.name
  limit_usd = var.limit_usd
  mail_to   = var.mail_to
}

# One key for all data at rest, so that who may read is said in one place.
resource "aws_kms_key" "this" {
  description             = "Data at rest of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}

data "aws_caller_identity" "current" {}

data "aws_iam_policy_document" "key" {
  #checkov:skip=CKV_AWS_356:in a key's own policy "*" is that key, and nothing else can be named
  #checkov:skip=CKV_AWS_111:the same
  #checkov:skip=CKV_AWS_109:the same; without the account's statement nobody could change the policy of the key any more
  # The account's own policies decide who uses the key ...
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = ["arn:aws:iam::${data.aws_caller_identity.current.account_id}:root"]
    }
  }
  # ... and CloudWatch encrypts the logs with it.
  statement {
    sid       = "Logs"
    actions   = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]
    resources = ["*"]
    principals {
      type        = "Service"
      identifiers = ["logs.${var.region}.amazonaws.com"]
    }
    condition {
      test     = "ArnLike"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values   = ["arn:aws:logs:${var.region}:${data.aws_caller_identity.current.account_id}:*"]
    }
  }
}
