# The bucket of the lake: Bronze, Silver, Gold, the jobs' states and the warehouse's exports, each below its prefix.

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_18:stages note in the tables what they wrote; a log of each request would cost more than it tells (CloudTrail's data events are there for who has to know)
  #checkov:skip=CKV_AWS_144:one region, as the brokers and the warehouse: with the lake alone nothing would run elsewhere
  #checkov:skip=CKV2_AWS_62:nobody listens: stages learn of new data from the tables' logs
  bucket = var.bucket
}

resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket = aws_s3_bucket.this.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket = aws_s3_bucket.this.id
  policy = data.aws_iam_policy_document.tls_only.json
}

data "aws_iam_policy_document" "tls_only" {
  statement {
    sid       = "DenyPlainText"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

# Never expires a file that a table may still name: that would be corruption, not ageing out.
# Only classes with immediate access, only versions that something replaced, and only exports are removed.
resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    id     = "cheaper-when-cold"
    status = "Enabled"

    filter {}

    transition {
      days          = 30
      storage_class = "INTELLIGENT_TIERING"
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
    noncurrent_version_expiration {
      noncurrent_days = var.undo_days
    }
  }

  rule {
    id     = "exports"
    status = "Enabled"

    filter {
      prefix = "_exports/"
    }

    expiration {
      days = 14
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}
