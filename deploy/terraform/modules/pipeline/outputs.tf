output "settings" {
  description = "What the stages need to know of this installation"
  value = {
    PIPELINE_KAFKA__BOOTSTRAP_SERVERS = module.msk.bootstrap_servers
    PIPELINE_LAKE__URI                = "s3://${module.lake.bucket}"
    PIPELINE_LAKE__REGION             = var.region
    PIPELINE_WAREHOUSE__HOST          = module.redshift.host
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
