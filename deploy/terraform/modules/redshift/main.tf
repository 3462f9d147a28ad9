# The warehouse. Serverless: it costs while it works, so `load` feeds it every five minutes and not every second.

resource "aws_security_group" "this" {
  name        = "${var.name}-warehouse"
  description = "Redshift of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  security_group_id            = aws_security_group.this.id
  description                  = "From the cluster's nodes"
  referenced_security_group_id = var.client_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 5439
  to_port                      = 5439
}

resource "aws_redshiftserverless_namespace" "this" {
  namespace_name        = var.name
  db_name               = "analytics"
  manage_admin_password = true
  kms_key_id            = var.kms_key_arn
  iam_roles             = [aws_iam_role.copy.arn]
  default_iam_role_arn  = aws_iam_role.copy.arn
  log_exports           = ["connectionlog", "userlog"]
}

resource "aws_redshiftserverless_workgroup" "this" {
  workgroup_name       = var.name
  namespace_name       = aws_redshiftserverless_namespace.this.namespace_name
  base_capacity        = var.base_rpu
  max_capacity         = var.max_rpu
  subnet_ids           = var.subnet_ids
  security_group_ids   = [aws_security_group.this.id]
  publicly_accessible  = false
  enhanced_vpc_routing = true

  config_parameter {
    parameter_key   = "require_ssl"
    parameter_value = "true"
  }
}

resource "aws_redshiftserverless_usage_limit" "this" {
  resource_arn  = aws_redshiftserverless_workgroup.this.arn
  usage_type    = "serverless-compute"
  period        = "monthly"
  amount        = var.rpu_hours_a_month
  breach_action = "log"
}

# COPY reads the exports, and nothing else.
resource "aws_iam_role" "copy" {
  name               = "${var.name}-copy"
  assume_role_policy = data.aws_iam_policy_document.copy_trust.json
}

data "aws_iam_policy_document" "copy_trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["redshift-serverless.amazonaws.com", "redshift.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "copy" {
  name   = "read-exports"
  role   = aws_iam_role.copy.id
  policy = data.aws_iam_policy_document.copy.json
}

data "aws_iam_policy_document" "copy" {
  statement {
    actions   = ["s3:GetObject"]
    resources = ["${var.lake_arn}/_exports/*"]
  }
  statement {
    actions   = ["s3:ListBucket", "s3:GetBucketLocation"]
    resources = [var.lake_arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["_exports/*"]
    }
  }
  statement {
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]
  }
}
