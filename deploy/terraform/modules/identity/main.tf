# Who may do what: a role for each service account of deploy/k8s, and no more in it than its stage needs.

data "aws_caller_identity" "current" {}

locals {
  # arn:aws:kafka:REGION:ACCOUNT:cluster/NAME/UUID -> .../topic/NAME/UUID/ and so on
  kafka = {
    for kind in ["topic", "group", "transactional-id"] :
    kind => replace(var.kafka_cluster_arn, ":cluster/", ":${kind}/")
  }
  changelogs = "changelog__${var.group_prefix}-detect--*"

  # Topics read, written and only asked about, and below which prefixes of the lake a stage reads, writes and deletes.
  # A test holds the topics against pipeline/kafka_acls.py, with which the stages are run on a guarded broker.
  stages = {
    simulate = {
      writes = ["sensors.raw"]
    }
    ingest = {
      reads  = ["sensors.raw", "sensors.readings"]
      writes = ["sensors.readings", "sensors.raw.dlq"]
    }
    detect = {
      reads   = ["sensors.readings", local.changelogs]
      writes  = ["sensors.anomalies", "sensors.windows", local.changelogs]
      creates = [local.changelogs]
    }
    bronze = {
      reads        = ["sensors.readings", "sensors.raw.dlq", "sensors.anomalies"]
      lake_writes  = ["bronze", "_unreadable", "_checks"]
      lake_deletes = ["_checks"]
    }
    silver = {
      lake_reads   = ["bronze"]
      lake_writes  = ["silver", "_state"]
      lake_deletes = ["_state"]
    }
    gold = {
      lake_reads  = ["silver"]
      lake_writes = ["gold"]
    }
    load = {
      lake_reads  = ["gold"]
      lake_writes = ["_exports"]
      warehouse   = true
    }
    monitor = {
      asks = [
        "sensors.raw", "sensors.readings", "sensors.raw.dlq", "sensors.raw.replays", "sensors.anomalies", "sensors.windows",
      ]
      lake_reads  = ["bronze", "silver", "gold", "quality"]
      lake_writes = ["quality"]
      warehouse   = true
    }
    dashboard = {
      lake_reads = ["bronze", "silver", "gold", "quality"]
    }
    setup = {
      creates = ["sensors.*"]
    }
    upkeep = {
      reads        = ["sensors.*"]
      lake_writes  = ["bronze", "silver", "gold", "quality"]
      lake_deletes = ["bronze", "silver", "gold", "quality"]
      warehouse    = true
    }
  }

  needs = {
    for name, stage in local.stages : name => merge({
      reads = [], writes = [], asks = [], creates = [], lake_reads = [], lake_writes = [], lake_deletes = [], warehouse = false
    }, stage)
  }
}

resource "aws_iam_role" "stage" {
  for_each = local.needs

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]
    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

resource "aws_eks_pod_identity_association" "stage" {
  for_each = aws_iam_role.stage

  cluster_name    = var.cluster_name
  namespace       = var.namespace
  service_account = each.key
  role_arn        = each.value.arn
}

resource "aws_iam_role_policy" "stage" {
  for_each = local.needs

  name   = "needs"
  role   = aws_iam_role.stage[each.key].id
  policy = data.aws_iam_policy_document.stage[each.key].json
}

data "aws_iam_policy_document" "stage" {
  for_each = local.needs

  dynamic "statement" {
    for_each = length(concat(each.value.reads, each.value.writes, each.value.asks, each.value.creates)) > 0 ? [1] : []
    content {
      sid       = "Connect"
      actions   = ["kafka-cluster:Connect", "kafka-cluster:DescribeCluster"]
      resources = [var.kafka_cluster_arn]
    }
  }

  dynamic "statement" {
    for_each = length(each.value.reads) > 0 ? [1] : []
    content {
      sid       = "ReadTopics"
      actions   = ["kafka-cluster:DescribeTopic", "kafka-cluster:DescribeTopicDynamicConfiguration", "kafka-cluster:ReadData"]
      resources = [for topic in each.value.reads : "${local.kafka["topic"]}/${topic}"]
    }
  }

  dynamic "statement" {
    for_each = length(each.value.asks) > 0 ? [1] : []
    content {
      sid       = "AskAboutTopics"
      actions   = ["kafka-cluster:DescribeTopic", "kafka-cluster:DescribeTopicDynamicConfiguration"]
      resources = [for topic in each.value.asks : "${local.kafka["topic"]}/${topic}"]
    }
  }

  # The groups of the stages; that of the stage itself is joined, and that of readers which belong to none (`look`);
  # others' progress is only looked at.
  dynamic "statement" {
    for_each = length(concat(each.value.reads, each.value.asks)) > 0 ? [1] : []
    content {
      sid       = "Groups"
      actions   = ["kafka-cluster:DescribeGroup"]
      resources = ["${local.kafka["group"]}/${var.group_prefix}-*"]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.reads) > 0 ? [1] : []
    content {
      sid       = "JoinGroup"
      actions   = ["kafka-cluster:AlterGroup"]
      resources = [for group in [each.key, "look"] : "${local.kafka["group"]}/${var.group_prefix}-${group}"]
    }
  }

  dynamic "statement" {
    for_each = length(each.value.writes) > 0 ? [1] : []
    content {
      sid       = "WriteTopics"
      actions   = ["kafka-cluster:DescribeTopic", "kafka-cluster:DescribeTopicDynamicConfiguration", "kafka-cluster:WriteData"]
      resources = [for topic in each.value.writes : "${local.kafka["topic"]}/${topic}"]
    }
  }
  # Bronze sends nothing, but the producer that Quix gives it is idempotent all the same.
  dynamic "statement" {
    for_each = length(each.value.writes) > 0 || each.key == "bronze" ? [1] : []
    content {
      sid       = "Idempotence"
      actions   = ["kafka-cluster:WriteDataIdempotently"]
      resources = [var.kafka_cluster_arn]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.writes) > 0 ? [1] : []
    content {
      sid       = "Transactions"
      actions   = ["kafka-cluster:DescribeTransactionalId", "kafka-cluster:AlterTransactionalId"]
      resources = ["${local.kafka["transactional-id"]}/${var.group_prefix}-${each.key}-*"]
    }
  }

  dynamic "statement" {
    for_each = length(each.value.creates) > 0 ? [1] : []
    content {
      sid = "CreateTopics"
      actions = [
        "kafka-cluster:CreateTopic",
        "kafka-cluster:DescribeTopic",
        "kafka-cluster:DescribeTopicDynamicConfiguration",
      ]
      resources = [for topic in each.value.creates : "${local.kafka["topic"]}/${topic}"]
    }
  }

  dynamic "statement" {
    for_each = length(concat(each.value.lake_reads, each.value.lake_writes)) > 0 ? [1] : []
    content {
      sid       = "ListLake"
      actions   = ["s3:ListBucket"]
      resources = [var.lake_arn]
      # Without a condition on the prefix: it would turn "no such object" into "access denied", and a Delta table is
      # opened by asking for a checkpoint that may not be there. Names can be seen by all stages, contents cannot.
    }
  }
  dynamic "statement" {
    for_each = length(concat(each.value.lake_reads, each.value.lake_writes)) > 0 ? [1] : []
    content {
      sid       = "ReadLake"
      actions   = ["s3:GetObject"]
      resources = [for prefix in concat(each.value.lake_reads, each.value.lake_writes) : "${var.lake_arn}/${prefix}/*"]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.lake_writes) > 0 ? [1] : []
    content {
      sid       = "WriteLake"
      actions   = ["s3:PutObject", "s3:AbortMultipartUpload"]
      resources = [for prefix in each.value.lake_writes : "${var.lake_arn}/${prefix}/*"]
    }
  }
  dynamic "statement" {
    for_each = length(each.value.lake_deletes) > 0 ? [1] : []
    content {
      sid       = "DeleteFromLake"
      actions   = ["s3:DeleteObject"]
      resources = [for prefix in each.value.lake_deletes : "${var.lake_arn}/${prefix}/*"]
    }
  }
  dynamic "statement" {
    for_each = length(concat(each.value.lake_reads, each.value.lake_writes)) > 0 ? [1] : []
    content {
      sid       = "LakeKey"
      actions   = length(each.value.lake_writes) > 0 ? ["kms:Decrypt", "kms:GenerateDataKey"] : ["kms:Decrypt"]
      resources = [var.kms_key_arn]
    }
  }

  dynamic "statement" {
    for_each = each.value.warehouse ? [1] : []
    content {
      sid       = "Warehouse"
      actions   = ["redshift-serverless:GetCredentials", "redshift-serverless:GetWorkgroup"]
      resources = [var.workgroup_arn]
    }
  }
}
