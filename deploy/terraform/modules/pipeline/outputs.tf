output "settings" {
  description = "What the stages need to know of this installation"
  value = {
    PIPELINE_KAFKA__BOOTSTRAP_SERVERS = module.msk.bootstrap_servers
    PIPELINE_KAFKA__REGION            = var.region
    PIPELINE_LAKE__URI                = "s3://${module.lake.bucket}"
    PIPELINE_LAKE__REGION             = var.region
    PIPELINE_WAREHOUSE__HOST          = module.redshift.host
    PIPELINE_WAREHOUSE__DATABASE      = module.redshift.database
    PIPELINE_WAREHOUSE__WORKGROUP     = module.redshift.workgroup_name
    PIPELINE_WAREHOUSE__IAM_ROLE      = module.redshift.copy_role_arn
    PIPELINE_WAREHOUSE__REGION        = var.region
  }
}

output "registry_url" {
  description = "Where the image is pushed to"
  value       = module.registry.url
}

output "cluster_name" {
  description = "For aws eks update-kubeconfig"
  value       = module.eks.cluster_name
}
